#include "export.h"

// The version of the package that the library was built with: a null-terminated string of static lifetime.
ONNXOPT_EXPORT const char* onnxopt_version() { return ONNXOPT_VERSION; }
