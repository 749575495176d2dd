"""Train one member and measure it: loops, optimisers, schedules, the trainer, evaluation."""
