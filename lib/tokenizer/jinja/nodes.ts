/**
 * The tree of a template.
 *
 * @module
 */

/** What a call is given. */
export interface Arguments {
  /** By position; `spread` stands for `*list`. */
  readonly positional: readonly { readonly value: Expression; readonly spread: boolean }[];
  /** By name; without a name it stands for `**mapping`. */
  readonly named: readonly { readonly name?: string; readonly value: Expression }[];
}

/** The name of a filter or test and what it is given besides its subject. */
export interface Applied extends Arguments {
  /** Its name. */
  readonly name: string;
}

/** What has a value. */
export type Expression =
  | { readonly type: "constant"; readonly value: string | number | boolean | null; readonly float?: boolean }
  | { readonly type: "name"; readonly name: string }
  | { readonly type: "list" | "tuple"; readonly items: readonly Expression[] }
  | { readonly type: "dict"; readonly items: readonly (readonly [key: Expression, value: Expression])[] }
  | { readonly type: "attribute"; readonly object: Expression; readonly name: string }
  | { readonly type: "item"; readonly object: Expression; readonly key: Expression }
  | { readonly type: "slice"; readonly object: Expression; readonly bounds: readonly (Expression | undefined)[] }
  | { readonly type: "call"; readonly callee: Expression; readonly given: Arguments }
  | { readonly type: "filter"; readonly subject: Expression | undefined; readonly filter: Applied }
  | { readonly type: "test"; readonly subject: Expression; readonly test: Applied; readonly negated: boolean }
  | { readonly type: "unary"; readonly operator: string; readonly operand: Expression }
  | { readonly type: "binary"; readonly operator: string; readonly left: Expression; readonly right: Expression }
  | { readonly type: "compare"; readonly first: Expression; readonly rest: readonly Comparison[] }
  | {
    readonly type: "if";
    readonly test: Expression;
    readonly then: Expression;
    readonly otherwise: Expression | undefined;
  };

/** One comparison of a chain. */
export interface Comparison {
  /** `==`, `<`, `in`, `not in`, ... */
  readonly operator: string;
  /** What is compared with. */
  readonly right: Expression;
}

/** A parameter of a macro. */
export interface Parameter {
  /** Its name. */
  readonly name: string;
  /** What it is where the caller leaves it out. */
  readonly missing: Expression | undefined;
}

/** What is carried out. */
export type Statement =
  | { readonly type: "text"; readonly text: string }
  | { readonly type: "output"; readonly value: Expression }
  | { readonly type: "do"; readonly value: Expression }
  | { readonly type: "branch"; readonly test: Expression; readonly then: Statement[]; readonly otherwise: Statement[] }
  | {
    readonly type: "for";
    readonly target: Expression;
    readonly over: Expression;
    readonly condition: Expression | undefined;
    readonly recursive: boolean;
    readonly body: Statement[];
    readonly otherwise: Statement[];
  }
  | { readonly type: "set"; readonly target: Expression; readonly value: Expression }
  | {
    readonly type: "capture";
    readonly target: Expression;
    readonly filter: Expression | undefined;
    readonly body: Statement[];
  }
  | { readonly type: "macro"; readonly name: string; readonly parameters: Parameter[]; readonly body: Statement[] }
  | {
    readonly type: "callblock";
    readonly call: Expression;
    readonly parameters: Parameter[];
    readonly body: Statement[];
  }
  | { readonly type: "filtered"; readonly filter: Expression; readonly body: Statement[] }
  | { readonly type: "with"; readonly sets: { target: Expression; value: Expression }[]; readonly body: Statement[] }
  | { readonly type: "generation"; readonly body: Statement[] }
  | { readonly type: "break" | "continue" };
