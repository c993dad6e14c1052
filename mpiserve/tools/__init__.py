"""Programs that a person runs: check a set-up, try models, print build flags."""
