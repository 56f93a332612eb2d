"""What was made for a key and may be used again, of which the least recently used goes first."""

import collections
import threading


class Recent:
    """Values by hashable keys, for all threads.

    Args:
        capacity: How many are kept.
    """

    def __init__(self, capacity):
        self._capacity, self._made = capacity, collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key, make):
        """The value of a key, which `make()` gives where there is none."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
                if len(self._made) > self._capacity:
                    self._made.popitem(last=False)
            self._made.move_to_end(key)
            return self._made[key]

    def replace(self, key, value):
        with self._lock:
            self._made[key] = value

    def clear(self):
        with self._lock:
            self._made.clear()

    def __len__(self):
        return len(self._made)
