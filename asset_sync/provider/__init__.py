"""Where data comes from: `polygon`, and the deadline that every request of ours keeps."""
