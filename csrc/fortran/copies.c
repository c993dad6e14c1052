/* copies: does the compiler pass a copy of an array, which is gone before the answer comes? */
#include <ISO_Fortran_binding.h>
#include <stddef.h>

/* mpiserve_fortran_is_elsewhere: does x begin at another address than first? */
int mpiserve_fortran_is_elsewhere(const CFI_cdesc_t *x, const void *first) {
  return x->base_addr != first;
}

/* The descriptors of gfortran for its own procedures. */
typedef struct gfortran_descriptor {
  void *base;
  size_t offset;
  struct {
    size_t elem_len;
    int version;
    signed char rank, type;
    short attribute;
  } dtype;
  ptrdiff_t span;
  struct {
    ptrdiff_t stride, lower, upper;
  } dim[15];
} gfortran_descriptor;

/* Called by a procedure of Fortran for its caller, so x is what gfortran itself uses. It passes
 * components of arrays of a derived type as dense copies, though their elements' distance would do.
 * All dimensions of its temporaries begin at 0; those of arrays of the program at 1, as the
 * standard says, but for what functions of type pointer give. */
static void is_copy(const gfortran_descriptor *x, int *copy) {
  ptrdiff_t stride = 1;
  *copy = x->dtype.rank > 0 && x->offset == 0;
  for (int d = 0; d < x->dtype.rank && *copy; d++) {
    *copy = x->dim[d].lower == 0 && x->dim[d].stride == stride;
    stride *= x->dim[d].upper + 1;
  }
}

/* mpiserve_fortran_gfortran_probe: as an address, since the names that compilers give to procedures
 * which are not bind(c) depend on their flags. */
void (*mpiserve_fortran_gfortran_probe(void))(void) { return (void (*)(void))is_copy; }
