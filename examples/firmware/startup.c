/* Start-up of a bare Cortex-M: vector table, C's memory, the coprocessors, and a HardFault handler that prints what it knows. */
#include "app.h"

extern uint32_t app_stack_top[], app_stack_limit[], app_data[], app_data_end[], app_data_load[], app_bss[],
    app_bss_end[];

void app_reset(void);
void app_fault(void);
void app_fault_report(const uint32_t *frame);

#define APP_REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

__attribute__((section(".vectors"), used)) static const void *const app_vectors[16] = {
    app_stack_top,           (const void *)app_reset, (const void *)app_fault, (const void *)app_fault,
    (const void *)app_fault, (const void *)app_fault, (const void *)app_fault, (const void *)app_fault};

/* A stack that has overflowed cannot hold the handler's frame, so the handler begins a new one. */
__attribute__((naked)) void app_fault(void) {
    __asm__ volatile("mrs r0, msp\n"
                     "ldr r1, =app_stack_top\n"
                     "msr msp, r1\n"
                     "bl app_fault_report\n");
}

void app_fault_report(const uint32_t *frame) {
    static const char *const names[8] = {"r0", "r1", "r2", "r3", "r12", "lr", "pc", "xpsr"};
    app_print("\nfault");
    if ((uintptr_t)frame >= (uintptr_t)app_stack_limit && (uintptr_t)frame < (uintptr_t)app_stack_top) {
        for (int i = 0; i < 8; i++) {
            app_print(" ");
            app_print(names[i]);
            app_print_hex(frame[i]);
        }
    } else {
        app_print(" overflow sp"); /* the core could not even stack its registers */
        app_print_hex((uint32_t)(uintptr_t)frame);
    }
#if __ARM_ARCH >= 7
    app_print(" cfsr"); /* what kind of fault, and where in data: Cortex-M0 does not say */
    app_print_hex(APP_REGISTER(0xE000ED28));
    app_print(" hfsr");
    app_print_hex(APP_REGISTER(0xE000ED2C));
    app_print(" bfar");
    app_print_hex(APP_REGISTER(0xE000ED38));
#endif
    app_print("\n");
    app_exit(1);
}

void app_reset(void) {
#if defined(__ARM_FEATURE_MVE) || defined(__ARM_FP)
    APP_REGISTER(0xE000ED88) |= UINT32_C(0xF) << 20; /* coprocessors 10 and 11: floating point and Helium registers */
    __asm__ volatile("dsb\n isb" ::: "memory");
#endif
    for (volatile uint32_t *to = app_data, *from = app_data_load; to < app_data_end;) {
        *to++ = *from++;
    }
    for (volatile uint32_t *p = app_bss; p < app_bss_end;) {
        *p++ = 0;
    }
    app_stack_paint();
    app_main();
    app_exit(0);
}

void app_system_reset(void) {
    __asm__ volatile("dsb" ::: "memory");
    APP_REGISTER(0xE000ED0C) = UINT32_C(0x05FA0004); /* AIRCR: SYSRESETREQ */
    for (;;) {
    }
}

/* ---- the stack, painted ---- */

#define APP_PAINT UINT32_C(0x5A5AA5A5)

static const volatile uint32_t *app_stack_lowest; /* of the phases before */

uint32_t app_sp(void) {
    uint32_t sp;
    __asm__ volatile("mov %0, sp" : "=r"(sp));
    return sp;
}

static const volatile uint32_t *app_stack_scan(void) {
    const volatile uint32_t *p = app_stack_limit;
    while (p < app_stack_top && *p == APP_PAINT) {
        p++;
    }
    return p;
}

/* Paints what lies below the caller's frame, all but what this function itself stands on. */
void app_stack_paint(void) {
    volatile uint32_t *p = app_stack_limit;
    const uint32_t sp = app_sp();
    while ((uintptr_t)p < sp - 16u) {
        *p++ = APP_PAINT;
    }
}

uint32_t app_stack_used(uint32_t sp) {
    const volatile uint32_t *lowest = app_stack_scan();
    if (lowest == app_stack_limit) { /* some boards swallow writes below their RAM instead of faulting */
        app_print("\nfault overflow sp");
        app_print_hex(sp);
        app_print("\n");
        app_exit(1);
    }
    if (app_stack_lowest == 0 || lowest < app_stack_lowest) {
        app_stack_lowest = lowest;
    }
    return (uintptr_t)lowest < sp ? sp - (uint32_t)(uintptr_t)lowest : 0u;
}

uint32_t app_stack_peak(void) {
    (void)app_stack_used(0);
    return (uint32_t)((uintptr_t)app_stack_top - (uintptr_t)app_stack_lowest);
}
