"""What a run says about its speed: step times, FLOPs, goodput, profiles, Weights & Biases."""
