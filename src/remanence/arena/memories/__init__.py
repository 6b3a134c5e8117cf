"""The memory systems of the literature, a file each; `SYSTEMS` has a line for each.

`base.py` has what they share, `words.py` what rules can see in a text, `thinking.py` what is asked of the reader.
"""

SYSTEMS: dict[str, str] = {
    "memorybank": "memorybank:MemoryBank",
    "tim": "tim:TiM",
    "scm": "scm:SCM",
    "hema": "hema:HEMA",
    "a-mem": "amem:AMem",
    "rmm": "rmm:RMM",
    "memgas": "memgas:MemGAS",
    "himem": "himem:HiMem",
    "emem": "emem:EMem",
    "emem-g": "emem:EMemG",
    "hgmem": "hgmem:HGMem",
    "memorag": "memorag:MemoRAG",
    "memory-r1": "memory_r1:MemoryR1",
    "mem-alpha": "mem_alpha:MemAlpha",
    "agentfly": "agentfly:AgentFly",
    "a-mac": "amac:AMAC",
    "a-memguard": "amemguard:AMemGuard",
    "memos": "memos:MemOS",
    "dmm-gov": "dmm_gov:DMMGov",
}
"""Name on the command line -> "module:Class", the module relative to this package."""
