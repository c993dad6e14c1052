-- A modulefile for Lmod; copy it to .../modulefiles/mpiserve/0.5.0.lua and set the three lines.
-- The environment is one of `python -m venv`, into which pip has installed mpiserve.
local root = "/opt/mpiserve/0.5.0"
local python = "python3.11"
local mpi = "openmpi" -- the module of the MPI that mpiserve runs with

whatis("Name: mpiserve")
whatis("Version: 0.5.0")
whatis("Description: a simulation and the models that it queries, in one MPI world")
help([[Python: import mpiserve. C, C++: mpicc prog.c $(mpiserve config --cflags --libs).
CMake: find_package(mpiserve). Codes that use MPI_COMM_WORLD: LD_PRELOAD=$MPISERVE_WORLD.]])

conflict("mpiserve")
depends_on(mpi)

local package = pathJoin(root, "lib", python, "site-packages", "mpiserve")
-- A wheel holds the library for each family of MPIs, a build from the sources holds it for one.
local family = mpi:lower():find("openmpi", 1, true) and "openmpi" or "mpich"
local prefix = pathJoin(package, "families", family)
if not isDir(prefix) then prefix = package end

prepend_path("PATH", pathJoin(root, "bin"))
prepend_path("PKG_CONFIG_PATH", pathJoin(prefix, "lib/pkgconfig"))
prepend_path("CMAKE_PREFIX_PATH", prefix)
prepend_path("LD_LIBRARY_PATH", pathJoin(prefix, "lib"))
setenv("MPISERVE_WORLD", pathJoin(prefix, "lib/libmpiserve_world.so"))
