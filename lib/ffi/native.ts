/**
 * The native library as seen by everything above: one typed function per symbol, the same under every runtime.
 *
 * @module
 */
import type { symbols } from "./symbols.ts";

/** A non-null address or handle in the runtime's own form: an object in Deno, a number in Bun. */
export interface NativePointer {
  /** Makes the type opaque. Has no value. */
  readonly nativePointer: never;
}

/** A device address, a handle, or NULL. */
export type Pointer = NativePointer | null;

/** What a parameter of each kind takes. An i64 is a safe integer. */
export interface ArgumentTypes {
  /** int32_t */
  i32: number;
  /** int64_t, as a safe integer */
  i64: number;
  /** float */
  f32: number;
  /** Host memory; NULL where the header allows it. */
  buffer: Uint8Array | null;
  /** A device address or a handle. */
  pointer: Pointer;
}

/** The kind of a parameter. */
export type Kind = keyof ArgumentTypes;

/** The symbol table: parameter kinds by name. */
export type Symbols = typeof symbols;

/** The argument list for a list of kinds. */
export type Arguments<Kinds extends readonly Kind[]> = {
  -readonly [Index in keyof Kinds]: ArgumentTypes[Kinds[Index]];
};

/** Every function of the library. All return a status, `VI_OK` or one of the other `VI_*` values. */
export type Functions = {
  readonly [Name in keyof Symbols]: (...args: Arguments<Symbols[Name]>) => number;
};

/** A function whose arguments have lost their types. */
// deno-lint-ignore no-explicit-any
export type UntypedFunction = (...args: any[]) => number;

/** What differs between runtimes. */
export interface Runtime {
  /** Opens a shared library. Throws the runtime's error. The library stays open. */
  open(path: string, table: Record<string, readonly Kind[]>): Record<string, UntypedFunction>;
  /** Reads an address that the library wrote to 8 bytes of host memory. */
  pointerFromBytes(bytes: Uint8Array): Pointer;
  /** The address `bytes` further on. */
  offset(pointer: NativePointer, bytes: number): NativePointer;
}

/** An open library. */
export interface Native extends Functions {
  /** The file it was opened from. */
  readonly path: string;
}

/**
 * Adds what the runtimes leave out: the number of arguments is checked, since Bun passes 0 for a missing one. The types
 * already say so; this is for callers in JavaScript.
 */
export function checked(name: string, arity: number, call: UntypedFunction): UntypedFunction {
  return (...args) => {
    if (args.length !== arity) throw new TypeError(`${name} takes ${arity} arguments, not ${args.length}`);
    return call(...args);
  };
}
