"""``ego-world-model bench``: how long each stage of a rollout takes, and what memory it needs."""
