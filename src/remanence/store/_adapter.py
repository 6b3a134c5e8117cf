"""Until the store has these itself."""
from contextlib import contextmanager

from .store import MemoryStore, _mark


class Shelf(MemoryStore):
    def is_current(self, name, memory):
        saved = self._saved.get(memory)
        return saved is not None and saved.mark == _mark(memory) and self._generation(name) == (saved.id, saved.generation)

    def meta(self, name):
        return self.load(name).meta()

    @contextmanager
    def open(self, name, model=None, *, create=True, known=None):
        if known is None:
            with super().open(name, model, create=create) as m:
                yield m
            return
        with self._locked(name):
            if self.is_current(name, known):
                memory = known
            else:
                memory = self.load(name) if self.exists(name) else model.new_memory()
            model.check(memory)
            yield memory
            saved = self._saved.get(memory)
            if saved is None or saved.mark != _mark(memory):
                self.save(name, memory)
