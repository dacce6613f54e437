// What ONNX Runtime calls when a session registers this library. There are no operators yet, so there is nothing
// to add to the options, and a null status says that all went well.
#include "export.h"

struct OrtStatus;
struct OrtSessionOptions;
struct OrtApiBase;

ONNXOPT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* /*options*/, const OrtApiBase* /*api*/) {
    return nullptr;
}
