/** Damages specimens at random and asks whether anybody noticed. */
import {SeededRandom} from '#runtime/random.ts';
import {type Specimen, WrongBytes, formats} from './formats.ts';

export interface FormatReport {
  readonly format: string;
  readonly cases: number;
  /** Ended in an error before a byte was served. */
  readonly refused: number;
  /** Found, and the right bytes were served from another copy. */
  readonly repaired: number;
  readonly failures: readonly string[];
}

/** `cases` of each format (all when none is named). The same seed gives the same damage. */
export async function runBitRot(options: {
  cases: number;
  seed: number;
  only?: string | undefined;
}): Promise<FormatReport[]> {
  const reports: FormatReport[] = [];
  for (const [format, make] of Object.entries(formats)) {
    if (options.only !== undefined && options.only !== format) continue;
    const random = new SeededRandom(options.seed);
    const specimen = await make(random);
    if ((await specimen.read(specimen.objects)) !== 'whole')
      throw new Error(`${format}: the undamaged one is not whole`);
    let refused = 0;
    let repaired = 0;
    const failures: string[] = [];
    for (let i = 0; i < options.cases; i++) {
      const damage = damageOne(specimen, random);
      const problem = await judge(specimen, damage);
      if (problem === 'refused') refused++;
      else if (problem === 'repaired') repaired++;
      else if (failures.length < 20) failures.push(`case ${i} of seed ${options.seed}, ${damage.what}: ${problem}`);
    }
    reports.push({format, cases: options.cases, refused, repaired, failures});
  }
  return reports;
}

interface Damage {
  readonly what: string;
  /** Those that are not what they were: an error must name one of them. */
  readonly damaged: readonly string[];
  readonly objects: Map<string, Buffer>;
}

async function judge(specimen: Specimen, {damaged, objects}: Damage): Promise<string> {
  try {
    const outcome = await specimen.read(objects);
    return outcome === 'repaired' ? 'repaired' : 'nobody noticed';
  } catch (error) {
    const {message} = error as Error;
    if (error instanceof WrongBytes) return `SERVED WRONG BYTES: ${message}`;
    if (!damaged.some((object) => message.includes(specimen.namedAs(object))))
      return `the error does not name the object: ${message}`;
    if (specimen.saysOffset === true && !/at byte \d+/.test(message)) return `the error names no offset: ${message}`;
    return 'refused';
  }
}

/** Half flipped bits; the rest cuts, swaps, zeroed sectors, and stretches moved within the object. */
function damageOne(specimen: Specimen, random: SeededRandom): Damage {
  const names = [...specimen.objects.keys()];
  for (;;) {
    const object = names[random.uint32() % names.length]!;
    const whole = specimen.objects.get(object)!;
    let bytes: Buffer = Buffer.from(whole);
    const objects = new Map(specimen.objects);
    const at = random.uint32() % whole.length;
    const damaged = [object];
    let what: string;
    switch (random.uint32() % 10) {
      case 0:
      case 1:
        bytes = bytes.subarray(0, at);
        what = `cut at ${at} of ${whole.length}`;
        break;
      case 2: {
        const other = names[random.uint32() % names.length]!;
        if (other === object) continue;
        bytes = Buffer.from(specimen.objects.get(other)!);
        objects.set(other, whole);
        damaged.push(other);
        what = `swapped with ${other}`;
        break;
      }
      case 3:
        bytes.fill(0, at, Math.min(whole.length, at + 512));
        what = `512 zeros at ${at}`;
        break;
      case 4: {
        const length = Math.min(whole.length - at, 1 + (random.uint32() % 4096));
        whole.copy(bytes, random.uint32() % whole.length, at, at + length);
        what = `${length} bytes of ${at} moved`;
        break;
      }
      default: {
        const bit = random.uint32() % 8;
        bytes[at]! ^= 1 << bit;
        what = `bit ${bit} of byte ${at} flipped`;
      }
    }
    if (bytes.equals(whole)) continue; // zeros over zeros
    objects.set(object, bytes);
    return {what: `${object}: ${what}`, damaged, objects};
  }
}
