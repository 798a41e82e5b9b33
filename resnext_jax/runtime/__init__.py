"""Start-up, preemption, the workdir lock, metric writers, curves and profiling: everything that surrounds a run."""
