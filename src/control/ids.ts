/** Ids as Neon's clients know them (neon-api.md §1.5): two words and a random end. */
import type {Random} from '#runtime/random.ts';

const first = (
  'amber ancient autumn bitter black blue bold broad broken calm cold cool crimson curly damp dark dawn delicate divine dry ' +
  'empty falling fancy flat floral fragrant frosty gentle green hidden holy icy jolly late lingering little lively long lucky ' +
  'misty morning muddy mute nameless noisy odd old orange patient plain polished proud purple quiet rapid red restless rough ' +
  'round royal shiny shrill shy silent small snowy soft solitary sparkling spring square steep still summer super sweet ' +
  'tight tiny twilight wandering weathered white wild winter wispy withered yellow young'
).split(' ');
const second = (
  'art band bar base bird block boat bonus bread breeze brook bush butterfly cake cell cherry cloud credit darkness dawn dew ' +
  'disk dream dust feather field fire firefly flower fog forest frog frost glade glitter grass hall hat haze heart hill king ' +
  'lab lake leaf limit math meadow mode moon morning mountain mouse mud night paper pine poetry pond queen rain recipe resonance ' +
  'rice river salad scene sea shadow shape silence sky smoke snow snowflake sound star sun sunset surf term thunder tooth tree ' +
  'truth union unit violet voice water waterfall wave wildflower wind wood'
).split(' ');
const alphanumeric = '0123456789abcdefghijklmnopqrstuvwxyz';

function words(random: Random): string {
  return `${first[random.uint32() % first.length]}-${second[random.uint32() % second.length]}`;
}

function letters(random: Random, count: number, alphabet: string): string {
  return Array.from({length: count}, () => alphabet[random.uint32() % alphabet.length]).join('');
}

export function newProjectId(random: Random): string {
  return `${words(random)}-${letters(random, 8, '0123456789')}`;
}
export function newBranchId(random: Random): string {
  return `br-${words(random)}-a${letters(random, 7, alphanumeric)}`;
}
export function newEndpointId(random: Random): string {
  return `ep-${words(random)}-a${letters(random, 7, alphanumeric)}`;
}
export function newSnapshotId(random: Random): string {
  return `snap-${words(random)}-a${letters(random, 7, alphanumeric)}`;
}
export function newOrganizationId(random: Random): string {
  return `org-${words(random)}-${letters(random, 8, '0123456789')}`;
}
