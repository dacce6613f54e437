#pragma once

// Marks a function that the library shows to the outside; everything else stays hidden.
#ifdef _WIN32
#define ONNXOPT_EXPORT extern "C" __declspec(dllexport)
#else
#define ONNXOPT_EXPORT extern "C" __attribute__((visibility("default")))
#endif
