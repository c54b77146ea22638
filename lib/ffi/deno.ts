/**
 * The FFI of Deno.
 *
 * @module
 */
import type { Kind, NativePointer, Pointer, Runtime, UntypedFunction } from "./native.ts";

/** The part of `Deno` that is used, so that this file type-checks without Deno's types. */
interface DenoFfi {
  dlopen(
    path: string,
    symbols: Record<string, { parameters: readonly Kind[]; result: "i32" }>,
  ): { symbols: Record<string, UntypedFunction> };
  UnsafePointer: {
    create(value: bigint): Pointer;
    offset(pointer: NativePointer, bytes: number): NativePointer;
  };
}

const ffi: DenoFfi | undefined = (globalThis as unknown as { Deno?: DenoFfi }).Deno;

/** Deno takes an int64_t on its fast path only as a BigInt: 50 ns with the conversion, 140 ns for a number. */
function withBigInt(call: UntypedFunction, index: number): UntypedFunction {
  return (...args) => {
    args[index] = BigInt(args[index]);
    return call(...args);
  };
}

/** `Deno.dlopen`. Pointers are Deno's pointer objects. */
export const runtime: Runtime = {
  open(path: string, table: Record<string, readonly Kind[]>): Record<string, UntypedFunction> {
    const definitions = Object.fromEntries(
      Object.entries(table).map(([name, parameters]) => [name, { parameters, result: "i32" as const }]),
    );
    const { symbols } = ffi!.dlopen(path, definitions);
    return Object.fromEntries(
      Object.entries(table).map(([name, kinds]) => {
        const index = kinds.indexOf("i64");
        return [name, index < 0 ? symbols[name] : withBigInt(symbols[name], index)];
      }),
    );
  },
  pointerFromBytes(bytes: Uint8Array): Pointer {
    return ffi!.UnsafePointer.create(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
  },
  offset(pointer: NativePointer, bytes: number): NativePointer {
    return ffi!.UnsafePointer.offset(pointer, bytes);
  },
};
