"""What a training leaves on the disk: run directories, checkpoints and logs."""
