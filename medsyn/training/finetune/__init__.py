"""Fine-tuning: the stage, its data, its loss, what changes from step to step, and the loop."""
