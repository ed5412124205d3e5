"""What starts the jobs: cron or systemd."""
