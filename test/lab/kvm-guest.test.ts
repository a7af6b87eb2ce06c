import { testGuests } from '../isolation/guest.js'

testGuests('kvm', 1_000_000)
