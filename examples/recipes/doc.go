// Package recipes has a small, complete program in each folder, which shows
// usher beside something that people use. The tests start each as a process, and
// stop it while requests keep coming.
package recipes
