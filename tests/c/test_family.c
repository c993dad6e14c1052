#include "mpi/family.h"

#include "check.h"

static const char *const OPEN[] = {"Open MPI 5.0.11", "Open MPI v4.1.4, package: Debian"};
static const char *const MPICH[] = {"MPICH 5.0.2", "Intel(R) MPI Library 2021.11 for Linux* OS",
                                    "MVAPICH2 Version      :\t2.3.7",
                                    "MPI VERSION    : CRAY MPICH version 8.1.25.17"};

static void test_mpis_with_one_binary_interface_go_together(void) {
  CHECK(!msi_family_differs(OPEN[0], OPEN[1]));
  for (int i = 0; i < 4; i++) CHECK(!msi_family_differs(MPICH[0], MPICH[i]));
}

static void test_others_differ(void) {
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++) {
      CHECK(msi_family_differs(OPEN[i], MPICH[j]));
      CHECK(msi_family_differs(MPICH[j], OPEN[i]));
    }
}

/* The same library, by another of its interfaces. */
static void test_the_abi_of_mpi_5_is_a_family_of_its_own(void) {
  CHECK(!msi_family_differs("MPI ABI 1.0", "MPICH 5.0.2 (MPI ABI)"));
  CHECK(!msi_family_differs("MPI ABI 1.0", "Open MPI 6.0.0 (MPI ABI)"));
  CHECK(msi_family_differs("MPICH 5.0.2", "MPICH 5.0.2 (MPI ABI)"));
  CHECK(msi_family_differs("MPI ABI 1.0", "Open MPI 6.0.0"));
}

/* IBM's is an Open MPI that does not say so. */
static void test_an_mpi_that_nobody_knows_is_not_refused(void) {
  CHECK(!msi_family_differs(OPEN[0], "IBM Spectrum MPI, 10.4"));
  CHECK(!msi_family_differs("MPI 4.1", MPICH[0]));
}

int main(void) {
  test_mpis_with_one_binary_interface_go_together();
  test_others_differ();
  test_the_abi_of_mpi_5_is_a_family_of_its_own();
  test_an_mpi_that_nobody_knows_is_not_refused();
  return check_result();
}
