/* htpw_amx.h - matrix products by AMX tiles. Needs the VNNI backend, whose layout and requantisation it shares. */
#ifndef HTPW_AMX_H
#define HTPW_AMX_H

#include "../x86_avx512vnni/htpw_vnni.h"

/* Only on Linux, where a process asks the kernel for the tiles; a header tells that compiler and assembler know AMX. */
#if defined(HTPW_HAS_X86_AVX512VNNI) && defined(__linux__) && !defined(HTPW_CONFIG_NO_X86_AMX) && defined(__has_include)
#if __has_include(<amxint8intrin.h>) || __has_include(<amxintrin.h>) /* GCC, clang */
#define HTPW_HAS_X86_AMX

/* Whether CPU and operating system let this process use tiles. The first call asks for the permission, which then holds for
 * all threads of the process and cannot be given back. */
int htpw_amx_is_usable(void);

extern const struct htpw_backend htpw_backend_x86_amx;

#endif
#endif

#endif
