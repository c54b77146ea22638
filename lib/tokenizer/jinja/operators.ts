/**
 * Python's arithmetic, on numbers, texts and lists.
 *
 * @module
 */

import { printed } from "./format.ts";
import { JinjaError } from "./lexer.ts";
import {
  escaped,
  float,
  isFloat,
  Markup,
  numeric,
  plain,
  Tuple,
  typeName,
  Undefined,
  undefinedError,
  type Value,
} from "./values.ts";

/** `left operator right`. Throws where Python has no such operation. */
export function arithmetic(operator: string, left: Value, right: Value): Value {
  if (left instanceof Undefined) throw undefinedError(left);
  if (operator === "+" && (left instanceof Markup || right instanceof Markup)) {
    return new Markup(escaped(left).value + escaped(right).value);
  }
  [left, right] = [plain(left), plain(right)];
  if (operator === "%" && typeof left === "string") return printed(left, right);
  if (right instanceof Undefined) throw undefinedError(right);
  const a = numeric(left), b = numeric(right);
  if (a !== undefined && b !== undefined) return calculated(operator, a, b, isFloat(left) || isFloat(right));
  if (operator === "+") {
    if (typeof left === "string" && typeof right === "string") return left + right;
    if (Array.isArray(left) && Array.isArray(right) && left instanceof Tuple === right instanceof Tuple) {
      return left instanceof Tuple ? Tuple.from<Value>([...left, ...right]) : [...left, ...right];
    }
  }
  if (operator === "*") {
    const [items, times] = a === undefined ? [left, b] : [right, a];
    if (times !== undefined && Number.isInteger(times)) {
      if (typeof items === "string") return items.repeat(Math.max(0, times));
      if (Array.isArray(items)) return Array.from({ length: Math.max(0, times) }, () => items).flat();
    }
  }
  throw new JinjaError(`unsupported operand type(s) for ${operator}: '${typeName(left)}' and '${typeName(right)}'`);
}

function calculated(operator: string, a: number, b: number, floats: boolean): Value {
  const result = (value: number): Value => floats ? float(value) : value;
  if (b === 0 && (operator === "/" || operator === "//" || operator === "%")) throw new JinjaError("division by zero");
  switch (operator) {
    case "+":
      return result(a + b);
    case "-":
      return result(a - b);
    case "*":
      return result(a * b);
    case "/":
      return float(a / b);
    case "//":
      return result(Math.floor(a / b));
    case "%":
      return result(a - Math.floor(a / b) * b);
    default:
      return floats || b < 0 ? float(a ** b) : a ** b;
  }
}
