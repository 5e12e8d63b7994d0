/* htpw_thumb.h - the table of the backend for Cortex-M without the DSP extension (M0, M0+, M23, M3); see README.md. */
#ifndef HTPW_THUMB_H
#define HTPW_THUMB_H

#include "../htpw_backend.h"

#if defined(__thumb__) && defined(__ARM_ARCH_PROFILE) && !defined(__ARM_FEATURE_DSP) && !defined(__ARM_FEATURE_MVE) && \
    !defined(__ARM_BIG_ENDIAN) && defined(__GNUC__) && !HTPW_SMALL && !defined(HTPW_CONFIG_NO_THUMB)
#if __ARM_ARCH_PROFILE == 'M'
#define HTPW_HAS_THUMB 1
extern const struct htpw_backend htpw_backend_thumb;
#endif
#endif

#endif
