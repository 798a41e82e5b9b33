import signal


class Preemption:
    def __init__(self, n):
        self.flag = False

    def __enter__(self):
        self.old = signal.signal(signal.SIGTERM, lambda *a: setattr(self, "flag", True))
        return self

    def __exit__(self, *a):
        signal.signal(signal.SIGTERM, self.old)

    def requested(self, step):
        return self.flag
