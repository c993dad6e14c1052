/* profile_files: the files in which a rank keeps what is measured, mapped into memory. */
#ifndef MSI_PROFILE_FILES_H
#define MSI_PROFILE_FILES_H

#include <stddef.h>

#include "mpiserve.h"

/* The file of the report: MPISERVE_PROFILE_FILE, or its default. */
const char *msi_profile_file(void);

/* The name of a file of a rank, which ends so: ".part". Without a rank (-1), the folder of them. */
void msi_profile_name(int rank, const char *kind, char name[MPISERVE_TEXT_SIZE]);

/* Make that folder; make a file of so many bytes, whose pages are reserved, and map it. The caller
 * closes it. MPISERVE_ECONFIG: they cannot be made, and why. */
int msi_profile_make_folder(void);
int msi_profile_map(const char *name, size_t bytes, void **memory, int *file);

#endif
