/// @file
/// What the shared libraries show to programs.
#pragma once

/// Marks each class and function of the public headers that is not wholly in its header; all that is not marked is hidden.
#define PAGEDKV_PUBLIC __attribute__((visibility("default")))
