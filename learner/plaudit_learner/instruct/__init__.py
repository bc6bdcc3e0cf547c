"""Instruction tuning: from instruction–output pairs to a policy version (`plaudit instruct`).

    data → check → annotate → before ─┬─ tune (TRL, LoRA) ─┬─ after → verdict → publish → report
     files   findings   token ids     └─ held-out examples ┘

Each step keeps what it made in the run's directory, so a run that was killed continues where it stood.
"""
