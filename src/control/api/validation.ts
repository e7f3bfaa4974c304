/** Requests against their route's schema. */
import type {TObject, TSchema} from 'typebox';
import {Compile, type Validator} from 'typebox/schema';
import {apiErrors} from '#control/api/errors.ts';

type Verdict = {readonly value: unknown} | {readonly error: Error};

/** Fastify's validator compiler. Compiles at the first request: most routes are not called in the first second. */
export function validatorOf(schema: TSchema, part: string): (value: unknown) => Verdict {
  let validator: Validator | undefined;
  return (given) => {
    validator ??= Compile(schema as never);
    const value = part === 'querystring' ? convertQuery(schema, given) : given;
    const [good, errors] = validator.Errors(value);
    if (good) return {value};
    const [first] = errors;
    return {
      error: apiErrors.badRequest(
        `${part}${first?.instancePath ?? ''} ${first?.message ?? 'is not as the API wants it'}`,
      ),
    };
  };
}

/** A query string is text; numbers and flags are read from it where the schema wants them. */
function convertQuery(schema: TSchema, given: unknown): unknown {
  const properties = (schema as TObject).properties as Readonly<Record<string, {readonly type?: string}>>;
  return Object.fromEntries(
    Object.entries((given ?? {}) as Record<string, unknown>).map(([name, value]) => {
      const type = Object.hasOwn(properties, name) ? properties[name]?.type : undefined;
      if (typeof value !== 'string') return [name, value];
      if ((type === 'integer' || type === 'number') && /^-?\d+(\.\d+)?$/.test(value)) return [name, Number(value)];
      if (type === 'boolean' && (value === 'true' || value === 'false')) return [name, value === 'true'];
      return [name, value];
    }),
  );
}
