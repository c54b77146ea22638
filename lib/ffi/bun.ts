/**
 * The FFI of Bun.
 *
 * @module
 */
import type { Kind, NativePointer, Pointer, Runtime, UntypedFunction } from "./native.ts";

/** The part of `bun:ffi` that is used, so that this file type-checks without Bun's types. */
interface BunFfi {
  dlopen(
    path: string,
    symbols: Record<string, { args: string[]; returns: "i32" }>,
  ): { symbols: Record<string, UntypedFunction> };
}

const ffi = "Bun" in globalThis ? await import("bun:ffi") as unknown as BunFfi : undefined;

/** `dlopen` of `bun:ffi`. Pointers are numbers, and an int64_t may be given as one. */
export const runtime: Runtime = {
  open(path: string, table: Record<string, readonly Kind[]>): Record<string, UntypedFunction> {
    const types: Record<Kind, string> = { i32: "i32", i64: "i64", f32: "f32", buffer: "ptr", pointer: "ptr" };
    const definitions = Object.fromEntries(
      Object.entries(table).map(([name, kinds]) => [name, {
        args: kinds.map((kind) => types[kind]),
        returns: "i32" as const,
      }]),
    );
    return { ...ffi!.dlopen(path, definitions).symbols };
  },
  pointerFromBytes(bytes: Uint8Array): Pointer {
    const address = Number(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
    return address === 0 ? null : address as unknown as Pointer;
  },
  offset(pointer: NativePointer, bytes: number): NativePointer {
    return (pointer as unknown as number) + bytes as unknown as NativePointer;
  },
};
