/* The application: self-test, open, boot by one of the four schedules, stream windows, print logits.
 *
 * Sizes are compile-time constants (app_config.h, written beside the image from its memory plan), so the linker says what does not fit.
 * The program checks them against htpw_plan_memory before it runs. Every step between app_begin and app_end is a phase, whose stack is
 * measured and whose instructions the emulator can count.
 *
 * Options of the command line: windows=N, selftest=0, kernels=1 (write them to a file), blank=0 (the store is filled already), and
 * cut=K: the power fails in flash operation K, and the board starts again.
 */
#include "app.h"
#include "app_config.h"
#include "htpw.h"
#include "phase.h"
#include "ports/htpw_fake_flash.h"

#define APP_MAGIC UINT32_C(0x50505748)
#define APP_ERASE 4096u
#define APP_PAGE 256u
#define APP_MEMORY (APP_ARENA_BYTES + APP_CACHE_BYTES)
#define APP_IN_FLASH                                                                                                   \
    (APP_SCHEDULE >= 2) /* the preprocessor does not see that these are HTPW_STREAMED and HTPW_INSTALLED */

extern const uint8_t app_image[];

/* Arena, cache and rest lie one after the other, so that the self-test can borrow them together before they are needed. */
static uint8_t app_arena[APP_ARENA_BYTES] __attribute__((section(".app_arena"), aligned(16)));
#if APP_CACHE_BYTES > 0
static uint8_t app_cache[APP_CACHE_BYTES] __attribute__((section(".app_cache"), aligned(4)));
#endif
#if APP_SELFTEST && APP_MEMORY < HTPW_SELFTEST_BYTES
static uint8_t app_rest[HTPW_SELFTEST_BYTES - APP_MEMORY] __attribute__((section(".app_rest"), aligned(4), used));
#endif
#if APP_KERNEL_BYTES > APP_ARENA_BYTES
static uint8_t app_kernel[APP_KERNEL_BYTES] __attribute__((aligned(4))); /* of the test that reads kernels out */
#else
#define app_kernel app_arena
#endif
static int8_t app_window[APP_INPUT_BYTES], app_logits[APP_OUTPUT_BYTES];
static struct htpw_model app_model;
static struct htpw_context app_context;

/* What survives a reset. */
static struct {
    uint32_t magic, stage;
} app_kept __attribute__((section(".app_noinit")));

#if APP_STORE_BYTES > 0 || APP_SLOT_BYTES > 0
static uint8_t app_store[APP_STORE_BYTES + APP_SLOT_BYTES] __attribute__((section(".app_store"), aligned(16)));
static uint8_t app_page[APP_PAGE] __attribute__((aligned(4)));
static struct htpw_fake_flash app_store_chip, app_slot_chip;
static struct htpw_flash app_store_flash, app_slot_flash;
#endif
#if APP_SLOT_BYTES > 0
static uint8_t app_pack[APP_PACK_BYTES] __attribute__((aligned(4)));
#endif

__attribute__((weak)) void app_between_windows(uint32_t window) { (void)window; }

static void app_plan(void) {
    struct htpw_plan plan;
    app_check(htpw_plan_memory(&app_model, HTPW_BACKEND_BEST, &plan), "plan");
    const uint32_t arena = APP_SCHEDULE == HTPW_STREAMED    ? plan.streamed_arena_bytes
                           : APP_SCHEDULE == HTPW_INSTALLED ? plan.installed_arena_bytes
                                                            : plan.arena_bytes;
    const uint32_t cache = APP_IN_FLASH ? 0u : plan.cache_bytes;
    app_print("plan");
    app_print_int((int32_t)arena);
    app_print_int((int32_t)cache);
    app_print_int((int32_t)plan.input_bytes);
    app_print_int((int32_t)plan.output_bytes);
    app_print("\n");
    if (arena != APP_ARENA_BYTES || cache != APP_CACHE_BYTES || plan.input_bytes != APP_INPUT_BYTES ||
        plan.output_bytes != APP_OUTPUT_BYTES) {
        app_check(HTPW_ERR_ARENA, "plan");
    }
}

#if APP_STORE_BYTES > 0 || APP_SLOT_BYTES > 0
/* The power has failed under a flash operation: what a supervisor does then. */
static void app_restart_if_cut(void) {
    if (app_store_chip.is_off || app_slot_chip.is_off) {
        app_print("power failed, reset\n");
        app_kept.stage = 1;
        app_system_reset();
    }
}

static void app_open_flash(void) {
    const uint32_t cut = app_kept.stage == 0 ? app_option("cut", HTPW_FAKE_FLASH_NO_CUT) : HTPW_FAKE_FLASH_NO_CUT;
    if (app_kept.stage == 0) { /* a flash comes erased, or with what a programmer's probe has written */
        for (uint32_t i = 0; i < sizeof app_store; i++) {
            app_store[i] = 0xFF;
        }
        if (!app_option("blank", 1)) {
            (void)app_read(app_open("flash", 0), app_store, APP_STORE_BYTES);
        }
    }
    htpw_fake_flash_open(&app_store_chip, app_store, APP_STORE_BYTES, APP_PAGE, APP_ERASE, app_page, &app_store_flash);
    htpw_fake_flash_open(&app_slot_chip, app_store + APP_STORE_BYTES, APP_SLOT_BYTES, APP_PAGE, APP_ERASE, app_page,
                         &app_slot_flash);
    htpw_fake_flash_power(APP_SLOT_BYTES > 0 ? &app_slot_chip : &app_store_chip, cut);
}
#endif

static int app_bind(void) {
#if APP_IN_FLASH
    return htpw_bind_flash(&app_context, &app_model, HTPW_BACKEND_BEST, app_arena, APP_ARENA_BYTES, &app_store_flash,
                           APP_SCHEDULE);
#elif APP_CACHE_BYTES > 0
    return htpw_bind(&app_context, &app_model, HTPW_BACKEND_BEST, app_arena, APP_ARENA_BYTES, app_cache,
                     APP_CACHE_BYTES, APP_SCHEDULE);
#else
    return htpw_bind(&app_context, &app_model, HTPW_BACKEND_BEST, app_arena, APP_ARENA_BYTES, NULL, 0, APP_SCHEDULE);
#endif
}

static int app_run(void) { return htpw_run(&app_context, app_window, APP_INPUT_BYTES, app_logits, APP_OUTPUT_BYTES); }

/* Windows from a file of int8, one at a time, logits to the console. */
static void app_stream(void) {
    const uint32_t file = app_open("windows", 0), windows = app_option("windows", UINT32_MAX);
    for (uint32_t i = 0; i < windows && app_read(file, app_window, APP_INPUT_BYTES) == APP_INPUT_BYTES; i++) {
        app_check(APP_PHASE("run", app_run()), "run");
        app_print("logits");
        app_print_int((int32_t)app_kept.stage);
        for (uint32_t c = 0; c < APP_OUTPUT_BYTES; c++) {
            app_print_int(app_logits[c]);
        }
        app_print("\n");
        app_between_windows(i);
    }
}

#if !APP_LEAN
/* Every cached kernel, row-major, one after the other, into a file. */
static void app_write_kernels(void) {
    struct htpw_kernel_info info;
    const uint32_t file = app_open("kernels", 1);
    for (uint32_t layer = 0; htpw_kernel_info(&app_model, layer, &info) == HTPW_OK; layer++) {
        app_check(htpw_kernel_read(&app_context, layer, (int8_t *)app_kernel, info.bytes), "kernel");
        app_write(file, app_kernel, info.bytes);
        app_print("kernel");
        app_print_int((int32_t)info.op);
        app_print_int((int32_t)info.bytes);
        app_print("\n");
    }
}
#endif

#if APP_SLOT_BYTES > 0
/* Stores the code pack that has arrived, unless it is there; it is used from the next start on. */
static void app_receive_pack(void) {
    const uint32_t bytes = app_read(app_open("pack", 0), app_pack, APP_PACK_BYTES);
    const uint32_t number = bytes < 16u ? 0u
                                        : app_pack[12] | (uint32_t)app_pack[13] << 8 | (uint32_t)app_pack[14] << 16 |
                                              (uint32_t)app_pack[15] << 24;
    if (app_kept.stage < 2 &&
        app_model.pack_number != number) { /* a cut behind the last byte that counts leaves it whole */
        const int result = APP_PHASE("store", htpw_codes_store(&app_model, &app_slot_flash, app_pack, bytes));
        app_restart_if_cut();
        app_check(result, "store");
        app_print("stored, reset\n");
        app_kept.stage = 2;
        app_system_reset();
    }
}
#endif

int app_main(void) {
    if (app_kept.magic != APP_MAGIC) {
        app_kept.magic = APP_MAGIC;
        app_kept.stage = 0;
    }
    app_print("htpw ");
#if APP_LEAN
    app_print("- " APP_BACKEND);
#else
    app_print(htpw_version());
    app_print(" ");
    app_print(htpw_backend_name(HTPW_BACKEND_BEST));
#endif
    app_print_int((int32_t)app_kept.stage);
    app_print("\n");
#if APP_SELFTEST
    if (app_option("selftest", 1)) {
        app_check(APP_PHASE("selftest", htpw_selftest(HTPW_BACKEND_BEST, app_arena, HTPW_SELFTEST_BYTES)), "selftest");
    }
#endif
    app_check(APP_PHASE("open", htpw_model_open(&app_model, app_image, APP_IMAGE_BYTES)), "open");
    app_plan();
#if APP_STORE_BYTES > 0 || APP_SLOT_BYTES > 0
    app_open_flash();
#endif
#if APP_SLOT_BYTES > 0
    app_check(APP_PHASE("codes", htpw_codes_boot(&app_model, &app_slot_flash)), "codes");
    app_print("pack");
    app_print_int((int32_t)app_model.pack_number);
    app_print("\n");
#endif
    const int result = APP_PHASE("bind", app_bind());
#if APP_STORE_BYTES > 0 || APP_SLOT_BYTES > 0
    app_restart_if_cut();
#endif
    app_check(result, "bind");
    app_stream();
#if !APP_LEAN
    if (app_option("kernels", 0)) {
        app_write_kernels();
    }
#endif
#if APP_STORE_BYTES > 0
    if (app_option("keep", 0)) {
        app_write(app_open("store", 1), app_store, APP_STORE_BYTES);
    }
#endif
#if APP_SLOT_BYTES > 0
    app_receive_pack();
#endif
    app_print("stack");
    app_print_int((int32_t)app_stack_peak());
    app_print("\ndone\n");
    return 0;
}
