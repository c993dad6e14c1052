#!/bin/sh
# Debian calls MPICH's library libmpich.so.12. mpi4py's wheel asks for libmpi.so.12, and takes
# Debian's Open MPI if it finds none: give it the library that mpiserve was built with by that name.
set -eu
prefix=$1
library=$(find "$prefix" -name 'libmpiserve.so.*')
mpich=$(ldd "$library" | awk '/libmpich\.so/ { print $3 }')
rm -rf "$prefix/lib/mpich-abi"
if [ -n "$mpich" ]; then
  mkdir "$prefix/lib/mpich-abi"
  ln -s "$mpich" "$prefix/lib/mpich-abi/libmpi.so"
  ln -s "$mpich" "$prefix/lib/mpich-abi/libmpi.so.12"
fi
