/** Values between JSON and Postgres's text forms, for callers that do not ask for raw text. */

/** A JSON value as a parameter: the text Postgres reads, or null. */
export function toParameter(value: unknown): string | null {
  if (value === null || value === undefined) return null;
  if (typeof value === 'string') return value;
  if (Array.isArray(value)) return arrayLiteral(value);
  return JSON.stringify(value);
}

function arrayLiteral(values: readonly unknown[]): string {
  const elements = values.map((value) => {
    if (value === null) return 'NULL';
    if (Array.isArray(value)) return arrayLiteral(value);
    const text = typeof value === 'string' ? value : JSON.stringify(value);
    return `"${text.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`;
  });
  return `{${elements.join(',')}}`;
}

/** Type of the elements, by the type of the array (pg_type.dat). */
const elementTypes = new Map([
  [1000, 16],
  [1001, 17],
  [1002, 18],
  [1003, 19],
  [1005, 21],
  [1007, 23],
  [1009, 25],
  [1014, 1042],
  [1015, 1043],
  [1016, 20],
  [1021, 700],
  [1022, 701],
  [1028, 26],
  [199, 114],
  [3807, 3802],
  [1231, 1700],
  [2951, 2950],
  [1115, 1114],
  [1182, 1082],
  [1183, 1083],
  [1185, 1184],
  [1187, 1186],
  [1041, 869],
  [651, 650],
]);

/** A column's text as JSON: booleans, numbers that fit, json and arrays of those; everything else stays text. */
export function fromText(text: string | null, type: number): unknown {
  if (text === null) return null;
  const element = elementTypes.get(type);
  if (element !== undefined) return parseArray(text, element);
  switch (type) {
    case 16:
      return text === 't';
    case 21:
    case 23:
      return Number(text);
    case 700:
    case 701: {
      const value = Number(text);
      return Number.isFinite(value) ? value : text;
    }
    case 114:
    case 3802:
      return JSON.parse(text) as unknown;
    default:
      return text;
  }
}

/** Postgres's array text (array_out), with an optional `[l:u]=` in front. */
function parseArray(text: string, element: number): unknown {
  let at = text.startsWith('[') ? text.indexOf('=') + 1 : 0;
  const list = (): unknown[] => {
    const out: unknown[] = [];
    at++; // {
    while (text[at] !== '}') {
      if (text[at] === ',') at++;
      if (text[at] === '{') out.push(list());
      else if (text[at] === '"') out.push(fromText(quoted(), element));
      else {
        const end = /[,}]/.exec(text.slice(at))!.index + at;
        const bare = text.slice(at, end);
        out.push(bare === 'NULL' ? null : fromText(bare, element));
        at = end;
      }
    }
    at++;
    return out;
  };
  const quoted = (): string => {
    let out = '';
    for (at++; text[at] !== '"'; at++) {
      if (text[at] === '\\') at++;
      out += text[at];
    }
    at++;
    return out;
  };
  return list();
}
