#include <dlfcn.h>
#include <string.h>

#include "base/error.h"
#include "engine/engine.h"

/* Now and not lazily: a symbol that is missing is an error here, not in the middle of a batch. */
static mpiserve_engine_entry entry_of(const char *library) {
  mpiserve_engine_entry entry = NULL;
  void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  void *symbol = handle ? dlsym(handle, MPISERVE_ENGINE_ENTRY) : NULL;
  memcpy(&entry, &symbol, sizeof entry); /* ISO C converts no pointer to one of a function */
  return entry;
}

/* To an engine the uncertainty is an output as any other. */
static mpiserve_description of_engine(const mpiserve_description *published) {
  mpiserve_description its = *published;
  its.n_outputs += its.uncertain != 0;
  its.uncertain = 0;
  return its;
}

int msi_engine_load(const char *library, const char *model, const mpiserve_description *description,
                    mpiserve_engine *engine) {
  char text[MPISERVE_TEXT_SIZE] = "";
  const mpiserve_description its = of_engine(description);
  *engine = (mpiserve_engine){0};
  if (!library) return msi_engine_echo(&its, engine);
  mpiserve_engine_entry entry = entry_of(library);
  if (!entry) return msi_error(MPISERVE_EMODEL, "no engine: %s", dlerror());
  int code = entry(MPISERVE_ENGINE_VERSION, model, &its, engine, text, sizeof text - 1);
  if (!code && engine->run) return MPISERVE_OK;
  *engine = (mpiserve_engine){0};
  return msi_error(MPISERVE_EMODEL, "%s: %s", library, *text ? text : "it made no engine");
}

void msi_engine_close(mpiserve_engine *engine) {
  if (engine && engine->close) engine->close(engine->state);
  if (engine) *engine = (mpiserve_engine){0};
}
