"""The reverse pass of `Unroll` in exchangeable parts, in reading order:

`schedules` says which inner states are kept, `stores` keeps them, `adjoints` turns the adjoint
after a step into that before it, `passes` puts the three together; `journal` and `resuming` let a
killed run go on inside a pass, `sizes` chooses a schedule by the memory that each one needs.
"""
