"""What classes and samples are: data and plain values, under everything else."""
