import { prepareMachineThreads } from '../../vmm/threads.js'

/* The process of a microVM: its threads come up while this one loads the rest. Most guests have one processor. */
prepareMachineThreads(1)
void import('./contained.js')
