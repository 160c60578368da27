"""Training the world model's parts; see ``ego-world-model train --help``."""
