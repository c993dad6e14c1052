#!/bin/sh
# Debian's two MPIs may be installed side by side, under names such as mpicc.mpich: give an
# environment the commands of one of them under the plain names, where builds and tests look first.
set -eu
prefix=$1 mpi=$2
for command in mpicc mpifort mpiexec; do
  path=$(command -v "$command.$mpi") || {
    echo "there is no $command.$mpi: apt-get install lib$mpi-dev, and $mpi's launcher" >&2
    exit 1
  }
  printf '#!/bin/sh\nexec %s "$@"\n' "$path" >"$prefix/bin/$command"
  chmod +x "$prefix/bin/$command"
done
