"""A server for many people, each with a memory of their own: `remanence serve`.

Read in this order:

people.py       loaded memories: who may read or write one now, which one leaves the RAM; knows no HTTP
engine.py       one thread owns the model, and answers several people in one forward pass
keys.py         API keys, each for some memories
limits.py       sizes, rates and times that a request is held to
bodies.py       what requests say
talk.py         a turn of a conversation: history, answer, what is remembered
completions.py  the same as OpenAI's chat completions and responses
api.py          the routes
mcp.py          the tools of `remanence mcp`
scale.py        several replicas of all this on one store, on Ray Serve
"""
