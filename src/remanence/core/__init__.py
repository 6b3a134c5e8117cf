"""The memory and how a decoder writes and reads it. Start with `cache.py`; then in the direction that data flows:

decoder.py   a decoder with the weights of its memory: what writing and reading share
write.py     text -> chunks -> write
model.py     question -> read -> answer
memory.py    one user's memory: the short-term pool and the long-term store (`blocks.py`, `ledger.py`)
writes.py    what is known of a write beside its vectors
view.py, merging.py   several memories read as one, or without what has expired; two memories made one
retriever.py which past writes matter for a question: their scores
search.py, coarse.py   one search for all layers; of very many writes only the best are scored exactly
likeness.py  that search fitted in minutes: hidden states that are alike
retrieval.py from scores to what is read, one rule for use and training
read.py      which vectors a question reads, as slots
spans.py     which sentences of what was found are looked at by themselves
looking.py   reading the best of what was found one by one, to answer from the best of it
circles.py   ending an answer that only repeats itself
cache.py     slots in front of the prompt: a memory is a cache whose first slots are memory
attachment.py, placement.py, adapters.py   how stock decoders are made to take part
forgetting.py   taking a part out of what was told, and writing texts again
session.py   a conversation
batching.py  answers to several people at once, a token for all at a time
"""
