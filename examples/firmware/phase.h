/* phase.h - the phases of a program, which the host finds in the console and in the emulator's log. For one file of a program. */
#ifndef APP_PHASE_H
#define APP_PHASE_H

#include "app.h"
#include "app_config.h"
#include "htpw.h"

/* Stands in the emulator's log where a phase begins and ends. */
__attribute__((noinline)) void app_mark(void);
__attribute__((noinline)) void app_mark(void) { __asm__ volatile("" ::: "memory"); }

static void app_begin(void) {
    (void)app_stack_used(0); /* what lay between phases counts for the peak */
    app_stack_paint();
    app_mark();
}

/* Ends a phase: its name, the stack below this program's frame, its result. */
static int app_end(const char *name, uint32_t sp, int result) {
    app_mark();
    const uint32_t used = app_stack_used(sp);
    app_print("phase ");
    app_print(name);
    app_print_int((int32_t)used);
    app_print_int(result);
    app_print("\n");
    return result;
}

/* Gives up on an error, saying which. */
static void app_check(int result, const char *what) {
    if (result != HTPW_OK) {
        app_print("error ");
        app_print(what);
        app_print_int(result);
#if !APP_LEAN
        app_print(" ");
        app_print(htpw_error_text(result));
#endif
        app_print("\n");
        app_exit(1);
    }
}

#define APP_PHASE(name, call) app_end((name), app_sp(), (app_begin(), (call)))

#endif
