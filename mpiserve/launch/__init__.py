"""Start jobs: run, plan, write job scripts, check a configuration."""
