"""Pass several tensors, by name in any order or by position, and print the error of a mistake."""

import numpy as np

import mpiserve

ROWS = 2

with mpiserve.open() as session:
    rank = session.comm.rank
    gas = session.service("gas")
    temperature = 200.0 + 100 * (rank + np.arange(ROWS))
    fractions = np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3) + rank
    phase = np.arange(ROWS, dtype=np.int32)

    density, flux = gas(phase=phase, temperature=temperature, fractions=fractions)
    again, _ = gas(temperature, fractions, phase)
    assert (again == density).all()
    for row in range(ROWS):
        values = " ".join(f"{value:.2f}" for value in flux[row])
        print(f"rank {rank}, row {row}: density {density[row]:.4f}, flux {values}", flush=True)

    try:
        gas(temperature, fractions, phase.astype(np.int64))
    except mpiserve.DtypeError as error:
        print(f"rank {rank}: {error}", flush=True)
