"""What a memory is, step by step: `python examples/tour.py`. Read it beside what it prints.

Each part can be pasted into a notebook.
"""

from __future__ import annotations

import argparse
import tempfile

from remanence import MemoryModel, MemoryStore, Wanted

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="smollm2")
given = parser.parse_args()

print("1. A model, loaded once. It is an ordinary decoder; the memory is apart.")
model = MemoryModel.from_pretrained(given.model)
config = model.config
layers = len(model.attachment.layers)
print(f"   a write: {config.chunk_tokens} tokens become {config.K} vectors in each of {layers} layers")
print(f"   the short-term pool holds N = {config.N} of them, the long-term store all that were ever written")

print("\n2. A memory is told something.")
memory = model.new_memory()
model.memorize(memory, "Ada lives in Lisbon. Her sister Mia plays the cello.", source="letter")
print(f"   {memory.write_count} writes; {len(memory.pending_ids)} tokens wait in the window until they fill a chunk")
print("   asked now, it reads them there:", model.ask(memory, "What does Mia play?").text)

print("\n3. It reads on. What was told leaves the window, and later the pool.")
for chapter in range(6):
    prose = f"Chapter {chapter}. The rain went on, and nobody in the house had anything to say about the harvest. " * 12
    model.memorize(memory, prose, source=f"chapter {chapter}")
print(f"   {memory.tokens:,} tokens in {memory.write_count} writes; {memory.pool_size} vectors in the pool,")
print(f"   {memory.long_term_size} more in the long-term store, {memory.nbytes / 1e6:.1f} MB")

print("\n4. It is asked. The answer says what it was read from.")
answer = model.ask(memory, "Where does Ada live?")
print(f"   {answer.text}   (score {answer.score:.1f})")
for source in answer.sources[:2]:
    print(f"   from write {source.write}, {source.where}, {source.label}: {(source.text or '')[:60]}...")

print("\n5. It is saved, copied, and a part is forgotten.")
with tempfile.TemporaryDirectory() as folder:
    store = MemoryStore(folder)
    store.save("ada", memory)
    store.fork("ada", "before")
    with store.open("ada", model) as opened:
        done = model.forget(opened, Wanted(containing="Lisbon"))
    print(f"   forgotten: {done.texts}; {done.again} tokens that were told after it were written again")
    for name in ("ada", "before"):
        print(f"   {name}: {model.ask(store.load(name), 'Where does Ada live?').text}")
