"""Waiting for what another process or thread brings about, as long as a slow and busy machine may need."""
import time

PATIENCE = 180   # seconds: a wait that is over at once where all is well


def until(holds, *, seconds: float=PATIENCE):
    "Wait until something holds; what it gave."
    end = time.monotonic()+seconds
    while not (found := holds()):
        assert time.monotonic() < end, f'waited {seconds:g} s in vain'
        time.sleep(.05)
    return found
