"""The last module that a server of forks loads: what is there by now no fork's collector visits.

Otherwise each fork copies all of it when Python collects garbage, which DeepSpeed makes it do at
every start: two of the three seconds that a small engine took.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
