/**
 * Preloaded into Bun when the suite runs with sanitizers: Bun's alternate signal stack starts at an odd address, and
 * AddressSanitizer, which clears that stack whenever a C++ exception is thrown, stops the process on it.
 *
 * @module
 */
import { dlopen } from "bun:ffi";

const libc = dlopen("libc.so.6", { sigaltstack: { args: ["ptr", "ptr"], returns: "i32" } });
// stack_t of Linux on 64 bits: void *ss_sp, int ss_flags, size_t ss_size. SS_DISABLE = 2.
const stack = new BigUint64Array([0n, 2n, 0n]);
if (libc.symbols.sigaltstack(stack, null) !== 0) throw new Error("sigaltstack failed");
